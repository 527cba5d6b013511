"""Why a solve does not converge and what to try."""
