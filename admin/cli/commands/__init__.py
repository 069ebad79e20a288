"""The commands, one file per noun: a parser, options, and a function that returns a report."""
