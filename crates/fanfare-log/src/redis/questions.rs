//! Questions from one node to all nodes. The question is sent through the control stream; the nodes add their answers
//! to a list in Redis that expires.

use super::{connection::read, error::LinkError, keys::CONTROL_ENTRIES, limits::ALIVE_MS, link::Link, shared::Shared};
use crate::{environment, random::random};
use redis::cmd;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The timeout for answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the number of answers is checked.
const CHECK: Duration = Duration::from_millis(10);

/// How long answers are retained, in seconds.
const KEPT_SECS: i64 = 10;

/// Asks all nodes. Returns the answers that arrived in time, and the number of nodes.
pub(super) async fn ask(shared: &Shared, link: &Link, question: &str) -> Result<(Vec<String>, usize), LinkError> {
    let id = format!("{:032x}", u128::from_be_bytes(random()));
    let mut command = cmd("XADD");
    command.arg(&shared.keys.control).arg("MAXLEN").arg("~").arg(CONTROL_ENTRIES).arg("*");
    let now = link.clock_ms().await?;
    command.arg("k").arg("ask").arg("i").arg(&id).arg("q").arg(question).arg("s").arg(now);
    link.call(&command).await?;
    // The nodes that are alive now. The status of the last heartbeat lacks nodes that have just started.
    let alive = cmd("ZCOUNT").arg(&shared.keys.nodes).arg(now.saturating_sub(ALIVE_MS)).arg("+inf").take();
    let nodes: usize = read(link.call(&alive).await?)?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let key = shared.keys.answers(&id);
    loop {
        let there: usize = read(link.call(cmd("LLEN").arg(&key)).await?)?;
        if there >= nodes || Instant::now() >= deadline {
            let answers = read(link.call(cmd("LRANGE").arg(&key).arg(0).arg(-1)).await?)?;
            return Ok((answers, nodes));
        }
        sleep(CHECK).await;
    }
}

/// Answers a question in the background. A question older than [`KEPT_SECS`] is ignored, because the list of its
/// answers may have expired.
pub(super) fn answer(shared: &Arc<Shared>, id: &str, question: &str, asked_ms: u64) {
    let Ok(link) = shared.link() else { return };
    let (shared, key, question) = (shared.clone(), shared.keys.answers(id), question.to_owned());
    environment::spawn(async move {
        // The age is measured with the clock of Redis, which wrote `asked_ms`. The clock of this machine may differ.
        match link.clock_ms().await {
            Ok(now) if now.saturating_sub(asked_ms) <= 1_000 * KEPT_SECS.unsigned_abs() => {}
            Ok(_) => return,
            Err(error) => return tracing::debug!(%error, "failed to answer a question of another node"),
        }
        let answer = shared.follower.answer(question).await.unwrap_or_default().unwrap_or_default();
        // An empty answer is sent too, because the asking node waits for one answer from each node.
        let mut reply = redis::pipe();
        reply.rpush(&key, answer).expire(&key, KEPT_SECS);
        if let Err(error) = link.call_all(&reply).await {
            tracing::debug!(%error, "failed to answer a question of another node");
        }
    });
}
