"""python -m sslpl.predict."""

from sslpl.predict.command import main

if __name__ == "__main__":
    main()
