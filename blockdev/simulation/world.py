"""A world of simulated disks: one power supply and one seed for all of them."""

from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import PowerSupply


class SimulatedWorld(PowerSupply[SimulatedDisk]):
    """Several simulated disks that lose power together; see `PowerSupply`."""
