"""A stand-in for the C++ part of ais_bench, which is only looked for."""
