// The NF4 explorer: every number is looked up in tables from labkit/page/nf4_explorer.py.

function makeView(data) {
  const { texts } = data, reference = data.codes.indexOf("nf4");

  function evaluate({ code, block_size: size, double_quant: twice }) {
    return {
      levels: data.levels[code][size], usage: data.usage[code][size], error: data.errors[code][size],
      reference: data.errors[reference][size], bits: data.bits[size][twice], bytes: data.bytes.map(table => table[size][twice]),
    };
  }

  function drawLevels(result, state) {
    const width = byId("chart").clientWidth || 600, side = 14, base = 150, height = 130;
    const x = value => width / 2 + (width / 2 - side) * value, y = share => base - height * share;
    const curve = data.density.map(([at, density], index) => `${index ? "L" : "M"}${x(at)} ${y(density / 0.42)}`).join("");
    let body = fillDefinitions(data.colours);
    const most = Math.max(...result.usage);
    result.levels.forEach((level, index) => {
      const top = y(0.9 * result.usage[index] / most);
      body += `<rect x="${x(level) - 4}" y="${top}" width="8" height="${base - top}" fill="url(#fill-1)"/>`;
      body += `<path class="mark" d="M${x(level)} ${base}v7"/>`;
    });
    body += `<path class="mark" fill="none" d="${curve}"/><path class="axis" d="M${side} ${base}H${width - side}"/>`;
    for (const tick of [-1, -0.5, 0, 0.5, 1]) body += `<text class="soft" x="${x(tick)}" y="${base + 22}" text-anchor="middle">${tick}</text>`;
    [texts.axis, texts.curve, texts.shares].forEach((line, index) => {
      body += `<text class="soft" x="${width / 2}" y="${base + 40 + 16 * index}" text-anchor="middle">${escapeText(line)}</text>`;
    });
    const said = { n: result.levels.length, code: data.names[state.code], levels: result.levels.map(level => level.toFixed(3)).join(", ") };
    drawChart(base + 80, fill(texts.said, said), body);
  }

  function draw(result, state) {
    const line = fill(texts.verdict, { bits: result.bits.toFixed(4), error: result.error.toFixed(5) });
    byId("verdict").replaceChildren(element("strong", {}, line));
    drawLevels(result, state);
    const change = 100 * (result.error / result.reference - 1), gb = bytes => (bytes / 1e9).toFixed(3);
    const rows = [[texts.against, `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(1)} %`],
      ...data.models.map((model, index) => [fill(texts.model, { model, plain: gb(data.bfloat16[index]) }), `${gb(result.bytes[index])} GB`])];
    byId("details").innerHTML = "<table><tbody>" + rows.map(([name, value]) => `<tr><th scope="row">${escapeText(name)}</th><td>${value}</td></tr>`).join("") +
      `</tbody></table><p class="note">${escapeText(texts.note)}</p>`;
  }

  return { evaluate, draw };
}
