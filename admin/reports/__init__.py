"""What commands return, and how it is written to the terminal.

Takes plain values, and gives text for people or JSON for programs. Only this room prints.
"""
