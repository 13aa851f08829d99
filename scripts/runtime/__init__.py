"""What any job needs of the machine: files, locks, processes, memory, messages."""
