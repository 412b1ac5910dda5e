"""Common functions: errors, building objects from a configuration, files, locks, progress."""
