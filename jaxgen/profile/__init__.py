"""Where the time of compiled programs goes: traces, costs of operations, limits of the machine."""
