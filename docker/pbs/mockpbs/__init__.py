"""A PBS for tests: the commands, a server and a mom that really run jobs, behaving as measured on OpenPBS 23.06.06."""

VERSION = "23.06.06"
