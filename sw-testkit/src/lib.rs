//! Conformance suites, oracles, generators.
