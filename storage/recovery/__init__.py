"""Opening a pool: which members belong to it, the newest checkpoint, the log behind that.

Takes the devices that are offered, and gives the parts of a pool at its newest durable state, with
the end of the log fixed before anything is served.
"""
