"""What every job needs from the machine: files, locks, processes, memory, messages."""
