"""Report section on segmentations: metrics by data set, the worst cases, areas, and whether a score tells bad cases."""
