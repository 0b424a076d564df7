"""python -m sslpl.report."""

from sslpl.report.command import main

if __name__ == "__main__":
    main()
