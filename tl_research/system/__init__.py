"""What any program of this kind needs from the machine: files, locks, downloads, the terminal, hardware."""
