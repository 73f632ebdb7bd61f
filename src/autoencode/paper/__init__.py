"""The experiments of Kovenko & Bogach 2020: trained, measured, drawn, and judged claim by claim."""
