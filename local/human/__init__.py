"""Human speech from public repositories."""
