"""Parley: hosted, session-based chatbots, spoken to in OpenAI's tongue.

The floor plan; imports go down only:

    5  cli                                the commands
    4  app  |  server                     ties the knot: the only file that knows everybody; serves what it ties
    3  openai/  auth                      the doors: know the relay and the words
    2  relay admission seats speech  |  vendors/  |  stores/  |  workers
                                          the use case, the adapters, the shelves: do not know each other
    1  ports transcript conversation framing markup reply config telemetry metrics
    0  messages errors patience           the words; deadlines
       simulator/                         the vendors' APIs, pretended; stands apart
"""

__version__ = "0.1.0"
