"""What goes wrong with a device while it is used. What the user can mend beforehand is an `InputError`."""


class DeviceError(RuntimeError):
    """The device could not do what it was asked to; one line. Exit code 1."""


class ConnectionLost(DeviceError):
    """The device, the connection or the runner on it is gone; nothing more can be asked of this target."""
