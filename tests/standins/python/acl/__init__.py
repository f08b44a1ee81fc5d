"""A stand-in for pyACL: the one call that is used."""

import os


def get_soc_name():
    """None where no device is, as the real one."""
    return (
        None
        if os.environ.get("STANDIN_NO_ACL")
        else "Ascend" + os.environ.get("STANDIN_SOC", "310P3")
    )
