"""Plain charts as SVG text: lines, bars, axes with round ticks, a legend, a note below. No library."""
import math
from xml.sax.saxutils import escape

COLORS = ("#1f6fb4", "#d9621e", "#2e8b57", "#8b4fb0", "#8a8a8a", "#b8860b")
WIDTH, HEIGHT = 720, 410
LEFT, RIGHT, TOP, BOTTOM = 78, 22, 64, 98


def number(value):
    """A tick's text: short, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return "{:,.0f}".format(value)
    if abs(value) < 0.01:
        return "%.2g" % value
    return ("%.3f" % value).rstrip("0").rstrip(".") if abs(value) < 10 else "%g" % round(value, 1)


def linear_ticks(low, high, count=6):
    span = (high - low) or 1
    step = 10 ** math.floor(math.log10(span / count))
    for factor in (1, 2, 2.5, 5, 10):
        if span / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + i * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def log_ticks(low, high):
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0 ** decade for decade in decades if low <= 10.0 ** decade * 1.0001 and 10.0 ** decade <= high * 1.0001]
    if len(ticks) < 3:
        ticks = [factor * 10.0 ** decade for decade in decades for factor in (1, 2, 5)
                 if low <= factor * 10.0 ** decade * 1.0001 and factor * 10.0 ** decade <= high * 1.0001]
    return ticks


def power_ticks(low, high):
    """Powers of two, at most eight."""
    powers = list(range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1))
    step = max(1, math.ceil(len(powers) / 8))
    return [2.0 ** power for power in powers[::step]]


class Axis:
    """Maps values to pixels. kind: linear, log (ticks at decades) or log2 (ticks at powers of two)."""

    def __init__(self, low, high, start, end, kind="linear"):
        self.kind, self.start, self.end = kind, start, end
        if kind == "linear":
            self.low, self.high = low, high if high > low else low + 1
            self.ticks = linear_ticks(self.low, self.high)
        else:
            self.low, self.high = low, high if high > low else low * 10
            self.ticks = log_ticks(self.low, self.high) if kind == "log" else power_ticks(self.low, self.high)

    def at(self, value):
        if self.kind == "linear":
            share = (value - self.low) / (self.high - self.low)
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


class Chart:
    def __init__(self, title, note, x_title, y_title, legend_columns=None):
        self.parts, self.legend = [], []
        self.legend_columns = legend_columns
        self.title, self.note, self.x_title, self.y_title = title, note, x_title, y_title
        self.bottom = HEIGHT - BOTTOM

    def text(self, x, y, text, size=12, anchor="start", color="#333", extra=""):
        self.parts.append('<text x="%.1f" y="%.1f" font-size="%d" text-anchor="%s" fill="%s"%s>%s</text>'
                          % (x, y, size, anchor, color, " " + extra if extra else "", escape(text)))

    def line(self, x1, y1, x2, y2, color="#ddd", width=1, dash=None):
        self.parts.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g"%s/>'
                          % (x1, y1, x2, y2, color, width, ' stroke-dasharray="%s"' % dash if dash else ""))

    def axes(self, x, y, x_labels=None):
        """x_labels: [(pixel, text)] for bars; else ticks of the axis x."""
        for tick in y.ticks:
            self.line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick))
            self.text(LEFT - 8, y.at(tick) + 4, number(tick), 11, "end", "#555")
        for at, label in x_labels or [(x.at(tick), number(tick)) for tick in x.ticks]:
            if x_labels is None:
                self.line(at, self.bottom, at, self.bottom + 5, "#888")
            for row, part in enumerate(label.split("\n")):
                self.text(at, self.bottom + 17 + 13 * row, part, 11, "middle", "#555")
        self.line(LEFT, self.bottom, WIDTH - RIGHT, self.bottom, "#888")
        self.text((LEFT + WIDTH - RIGHT) / 2, self.bottom + (38 if not x_labels or all("\n" not in label for _, label in x_labels) else 48), self.x_title, 12, "middle")
        self.text(18, (TOP + self.bottom) / 2, self.y_title, 12, "middle",
                  extra='transform="rotate(-90 18 %.1f)"' % ((TOP + self.bottom) / 2))

    def done(self):
        self.text(LEFT - 60, 24, self.title, 15, extra='font-weight="bold"')
        x = LEFT
        for name, color in self.legend:
            self.parts.append('<rect x="%.1f" y="38" width="14" height="10" fill="%s"/>' % (x, color))
            self.text(x + 19, 47, name, 12)
            x += 19 + 6.6 * len(name) + 22
        for index, line in enumerate(self.note):
            self.text(LEFT - 60, HEIGHT - 32 + 13 * index, line, 10, color="#777")
        return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="Helvetica, Arial, sans-serif">\n'
                '<rect width="%d" height="%d" fill="#ffffff"/>\n%s\n</svg>\n'
                % (WIDTH, HEIGHT, WIDTH, HEIGHT, "\n".join(self.parts)))


def lines(title, note, x_title, y_title, series, x_kind="linear", y_kind="linear", y_from=None, y_to=None, marks=True, steps=False):
    """series: [(name, [(x, y), ...])], or (name, points, "dash"); one color each, in order."""
    chart = Chart(title, note, x_title, y_title)
    xs = [x for one in series for x, _ in one[1]]
    ys = [y for one in series for _, y in one[1]]
    low = y_from if y_from is not None else (0 if y_kind == "linear" else 10 ** math.floor(math.log10(min(ys))))
    high = y_to if y_to is not None else (max(ys) * 1.06 if y_kind == "linear" else 10 ** math.ceil(math.log10(max(ys))))
    x = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, x_kind)
    y = Axis(low, high, chart.bottom, TOP, y_kind)
    chart.axes(x, y)
    for index, one in enumerate(series):
        color = COLORS[index % len(COLORS)]
        dash = ' stroke-dasharray="6 4"' if len(one) > 2 else ""
        points, before = [], None
        for px, py in one[1]:
            if steps and before is not None:
                points.append((x.at(px), y.at(before)))
            points.append((x.at(px), y.at(py)))
            before = py
        chart.parts.append('<polyline fill="none" stroke="%s" stroke-width="2"%s points="%s"/>'
                           % (color, dash, " ".join("%.1f,%.1f" % point for point in points)))
        if marks:
            for px, py in one[1]:
                chart.parts.append('<circle cx="%.1f" cy="%.1f" r="3.2" fill="%s"/>' % (x.at(px), y.at(py), color))
        chart.legend.append((one[0], color))
    return chart.done()


def bars(title, note, x_title, y_title, groups, series, stacked=False, labels=True, y_to=None, y_kind="linear", digits=None):
    """groups: names, of one or two lines; series: [(name, [value a group, None: no bar])]."""
    chart = Chart(title, note, x_title, y_title)
    sums = [sum(one[1][g] or 0 for one in series) if stacked else max((one[1][g] or 0) for one in series) for g in range(len(groups))]
    values = [value for one in series for value in one[1] if value]
    low = 0 if y_kind == "linear" else 10 ** math.floor(math.log10(min(values)))
    high = y_to or (max(sums) * 1.1 if y_kind == "linear" else 10 ** math.ceil(math.log10(max(values))))
    y = Axis(low, high, chart.bottom, TOP, y_kind)
    slot = (WIDTH - RIGHT - LEFT) / len(groups)
    wide = slot * 0.72 / (1 if stacked else len(series))
    wide = min(wide, 74)
    middles = [LEFT + slot * (g + 0.5) for g in range(len(groups))]
    chart.axes(None, y, list(zip(middles, groups)))
    for index, (name, values) in enumerate(series):
        color = COLORS[index % len(COLORS)]
        chart.legend.append((name, color))
        for g, value in enumerate(values):
            if value is None:
                continue
            base = sum(one[1][g] or 0 for one in series[:index]) if stacked else low
            left = middles[g] - wide / 2 if stacked else middles[g] + (index - len(series) / 2) * wide
            top, foot = y.at(base + value if stacked else value), y.at(base) if stacked else chart.bottom
            chart.parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>'
                               % (left, top, wide - (0 if stacked else 3), max(foot - top, 0.5), color))
            shown = number(round(value, digits) if digits is not None else float("%.3g" % value))
            if labels and not stacked:
                chart.text(left + (wide - 3) / 2, top - 5, shown, 10, "middle")
            elif labels and foot - top > 14:
                chart.text(left + wide / 2, (top + foot) / 2 + 4, shown, 10, "middle", "#fff")
    return chart.done()
