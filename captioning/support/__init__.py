"""What everything else leans on: errors, building from a configuration, files, locks, progress."""
