"""Is it a defence? Attacks, the protocol that scores them, statistics, and the reports (docs/threat_model.md)."""
