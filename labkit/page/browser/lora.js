// The LoRA explorer: parameters per unit of rank come from labkit/page/lora_explorer.py, here multiplied and added.

function makeView(data) {
  const { texts } = data;

  function evaluate(state) {
    const rank = data.ranks[state.rank];
    const parts = data.targets.map((name, index) => state[name] ? rank * data.perRank[state.model][index] : 0);
    const trainable = parts.reduce((sum, n) => sum + n, 0);
    const share = trainable / (data.base[state.model] + trainable);
    const files = Object.entries(data.bytes).map(([dtype, size]) => [dtype, size * trainable]);
    return { parts, trainable, share, files, scale: data.scales[state.rank][state.alpha], rslora: data.rslora[state.rank][state.alpha] };
  }

  const short = number => Number(number.toPrecision(4)).toString();
  const megabytes = bytes => bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;

  function drawBars(result, state) {
    const width = byId("chart").clientWidth || 600, row = 22, left = 84, right = 100, top = 4;
    const most = Math.max(...result.parts, 1), x = n => left + (width - left - right) * n / most;
    let body = fillDefinitions(data.colours);
    data.targets.forEach((name, index) => {
      const y = top + index * row, n = result.parts[index];
      body += `<text x="${left - 8}" y="${y + 14}" text-anchor="end"${n ? "" : ' class="soft"'}>${name}</text>`;
      body += `<rect x="${left}" y="${y + 2}" width="${x(n) - left}" height="${row - 6}" fill="url(#fill-${index})"/>`;
      body += `<text x="${x(n) + 6}" y="${y + 14}"${n ? "" : ' class="soft"'}>${grouped(n)}</text>`;
    });
    const bottom = top + data.targets.length * row + 2;
    body += `<path class="axis" d="M${left} ${top}V${bottom}"/><text class="soft" x="${left}" y="${bottom + 16}">${escapeText(texts.parameters)}</text>`;
    const said = `${data.models[state.model]}, r = ${data.ranks[state.rank]}: ` +
      data.targets.map((name, index) => `${name} ${grouped(result.parts[index])}`).join(", ");
    drawChart(bottom + 22, said, body);
  }

  function draw(result, state) {
    const line = result.trainable ? fill(texts.verdict, { n: grouped(result.trainable), share: (100 * result.share).toFixed(3) }) : texts.none;
    byId("verdict").replaceChildren(element("strong", {}, line));
    drawBars(result, state);
    const rows = [[texts.scale, short(result.scale)], [texts.rslora, short(result.rslora)],
      ...result.files.map(([dtype, bytes]) => [fill(texts.file, { dtype }), `${megabytes(bytes)} (${grouped(bytes)} B)`]),
      [texts.base, grouped(data.base[state.model])]];
    const chosen = data.targets.filter(name => state[name]);
    const targets = chosen.length === data.targets.length ? "" : `, targets=(${chosen.map(name => `"${name}", `).join("").trim()})`;
    const typed = `Method(kind="lora", rank=${data.ranks[state.rank]}, alpha=${data.alphas[state.alpha]}${targets})`;
    byId("details").innerHTML = "<table><tbody>" + rows.map(([name, value]) => `<tr><th scope="row">${escapeText(name)}</th><td>${value}</td></tr>`).join("") +
      `</tbody></table><p class="note">${escapeText(texts.typed)} <code id="typed">${escapeText(typed)}</code></p><p class="note">${escapeText(texts.note)}</p>`;
  }

  return { evaluate, draw };
}
