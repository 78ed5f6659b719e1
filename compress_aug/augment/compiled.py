"""The compiled executor."""


def available() -> bool:
    """Whether it can work here."""
    return False


def apply_compiled(images, plan, fill, bilinear):
    """apply."""
    raise NotImplementedError
