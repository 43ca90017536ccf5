"""Role tables of third-party architectures, one TOML file each."""
