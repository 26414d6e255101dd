"""The Ray of one command: it starts on this machine, ends with the command, and forks its workers."""
