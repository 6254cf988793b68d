"""Rewards that ship, the scalar every draft is selected by, and the answer that copying is measured on."""
