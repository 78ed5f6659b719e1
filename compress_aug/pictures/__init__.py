"""Pictures as PNG files: what augmentation does to one's own images and how it changes; which layers bear what."""

# Nothing is gathered here: a schedule is drawn without torch, which the grids of images need.
