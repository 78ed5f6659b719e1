"""Pictures of augmentation as PNG files: what it does to one's own images, and how it changes over epochs."""

# Nothing is gathered here: a schedule is drawn without torch, which the grids of images need.
