"""The errors that puna raises on purpose, named by who must act.

Every message names the field, its value and the remedy. `cli` turns a `PunaError` into one line on standard error
and exit code 2; a server turns it into a status code. Anything else that escapes is a fault of ours.
"""


class PunaError(Exception):
    """Root of all errors that puna raises on purpose."""


class ConfigError(PunaError):
    """A configuration contradicts itself or asks for something unknown: the author of the file must act."""


class WeightsError(PunaError):
    """A checkpoint is damaged, incomplete or of another model: the owner of the files must act."""


class PromptError(PunaError):
    """A request cannot be turned into a prompt: the caller must act."""


class CapacityError(PunaError):
    """There is no room now (memory, queue, context): the caller may retry later or ask for less."""


class DeviceError(PunaError):
    """A device, driver or optional package is missing: the operator must act."""
