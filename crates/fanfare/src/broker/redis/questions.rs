//! What one node asks all of them: the question goes by the control stream, each answer into a list that ends by itself.

use super::{
    keys::CONTROL_ENTRIES,
    link::{Link, LinkError, read},
    recovery::ALIVE_MS,
    shared::Shared,
};
use crate::{environment, identity::random, why::Question};
use redis::cmd;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long nodes may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked who has answered.
const LOOK: Duration = Duration::from_millis(10);

/// How long answers wait for who asked, in seconds.
const KEPT_SECS: i64 = 10;

/// Asks every node. Gives what those said that answered in time, and how many there are.
pub(super) async fn ask(shared: &Shared, link: &Link, question: &Question) -> Result<(Vec<String>, usize), LinkError> {
    let id = format!("{:032x}", u128::from_be_bytes(random()));
    let text = serde_json::to_string(question).map_err(|error| LinkError::Answer(error.to_string()))?;
    let mut command = cmd("XADD");
    command.arg(&shared.keys.control).arg("MAXLEN").arg("~").arg(CONTROL_ENTRIES).arg("*");
    let now = link.clock_ms().await?;
    command.arg("k").arg("ask").arg("i").arg(&id).arg("q").arg(text).arg("s").arg(now);
    link.call(&command).await?;
    // Those who live now: of one that has just come, the last beat does not know.
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
        sleep(LOOK).await;
    }
}

/// Answers a question in the background. One that is as old as `asked_ms` is nobody's any more if that is long ago.
pub(super) fn answer(shared: &Arc<Shared>, id: &str, question: &str, asked_ms: u64) {
    let Ok(question) = serde_json::from_str::<Question>(question) else { return };
    let Ok(link) = shared.link() else { return };
    let (shared, key) = (shared.clone(), shared.keys.answers(id));
    environment::spawn(async move {
        // By Redis' clock, which the question is stamped with: this machine's may be any other time.
        match link.clock_ms().await {
            Ok(now) if now.saturating_sub(asked_ms) <= 1_000 * KEPT_SECS.unsigned_abs() => {}
            Ok(_) => return,
            Err(error) => return tracing::debug!(%error, "a question was not answered"),
        }
        let said = shared.follower.answer(question).await.unwrap_or_default().unwrap_or_default();
        // One that has nothing to say says so, or it would be waited for.
        let mut told = redis::pipe();
        told.rpush(&key, said).expire(&key, KEPT_SECS);
        if let Err(error) = link.call_all(&told).await {
            tracing::debug!(%error, "a question was not answered");
        }
    });
}
