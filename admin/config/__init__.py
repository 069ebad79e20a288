"""The configuration file, read strictly.

Takes TOML, and gives frozen values with every default filled in; a key that is unknown, of a wrong
type or out of range is refused, with a message that names it and the expected value.
"""
