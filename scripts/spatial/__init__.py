"""Space: grids, volumes, transforms and their files, fields, resampling, Jacobians."""
