"""Online estimators: RTRL, SnAp and UORO."""
