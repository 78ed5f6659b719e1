"""`python -m compress_aug.cli`, for where the command itself is not on the path."""

from compress_aug.cli.commands import main

if __name__ == "__main__":
    main()
