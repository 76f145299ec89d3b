"""``python -m dcbench_tesla``: the same as ``dcbench``."""

from dcbench_tesla.cli import main

if __name__ == "__main__":
    main()
