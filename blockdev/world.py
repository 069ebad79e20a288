"""The world of simulated disks: one power supply, and one source of luck."""

from blockdev.power import PowerSupply
from blockdev.simulated import SimulatedDisk


class SimulatedWorld(PowerSupply[SimulatedDisk]):
    """Several simulated disks that lose power together; see `PowerSupply`."""
