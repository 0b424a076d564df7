"""Plans the runs of a command line, executes them in this or other processes, resumes them and reports them."""
