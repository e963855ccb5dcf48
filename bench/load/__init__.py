"""What many clients, and hostile ones, cost the server and those beside them: `python -m bench.load`.

The server is the product in a process of its own, around an engine of a realistic pace; the crowd is another process;
whoever is measured is a third. All are on this machine, so a figure of two cores holds the cost of the crowd as well.
"""
