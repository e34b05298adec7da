"""One file per subcommand of `scaling`: a dataclass whose fields are its options."""
