"""The built-in analyzers: one file, one analyzer, one entry point, registered exactly like a stranger's."""
