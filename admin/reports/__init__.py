"""Reports: the results of commands, and how they are written to the terminal.

Takes plain values, and gives text for people or JSON for programs. Only this room prints.
"""
