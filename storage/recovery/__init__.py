"""Opening a pool: its members, the newest checkpoint, and the log behind that.

Takes the devices that are offered; gives the parts of a pool at its newest durable state, with the
end of the log fixed before anything is served.
"""
