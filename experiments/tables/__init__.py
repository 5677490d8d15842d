"""What stands behind the tables that compare memories: rows, budgets, runs, figures, pages."""
