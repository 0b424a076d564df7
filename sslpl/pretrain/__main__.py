"""python -m sslpl.pretrain."""

from sslpl.pretrain.command import main

if __name__ == "__main__":
    main()
