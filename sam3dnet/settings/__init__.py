"""What can be asked of each command, in one place: the options of its command line, the parameters of its function."""
