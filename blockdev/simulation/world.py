"""The world of simulated disks: one power supply, and one source of luck."""

from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import PowerSupply


class SimulatedWorld(PowerSupply[SimulatedDisk]):
    """Several simulated disks that lose power together; see `PowerSupply`."""
