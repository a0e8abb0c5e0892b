//! The seams, slot table, planner, splitting, striping, checksums, budgets and path report.
