"""Online estimators, which carry derivatives forward in time: RTRL, SnAp and UORO."""
