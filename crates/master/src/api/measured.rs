//! Times each call of the API, by its method and what it was answered with. It changes nothing of a call.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use prost_reflect::DescriptorPool;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::SERVED;
use crate::measures::Measures;

/// Wraps the services of a master, and what passes calls on.
#[derive(Clone)]
pub(crate) struct MeasuredLayer {
    measures: Measures,
    /// By path. Anybody can ask for a path that does not exist, and each would be remembered.
    methods: Arc<BTreeMap<String, String>>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    layer: MeasuredLayer,
}

impl MeasuredLayer {
    pub(crate) fn new(measures: Measures, pool: &DescriptorPool) -> Self {
        let services = pool.services().filter(|service| SERVED.contains(&service.full_name()));
        let methods = services.flat_map(|service| {
            let path = format!("/{}/", service.full_name());
            service.methods().map(move |method| (format!("{path}{}", method.name()), method.name().to_owned())).collect::<Vec<_>>()
        });
        Self { measures, methods: Arc::new(methods.collect()) }
    }
}

impl<S> Layer<S> for MeasuredLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, layer: self.clone() }
    }
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = self.layer.methods.get(request.uri().path()).cloned();
        let begun = Instant::now();
        let answer = self.inner.call(request);
        let Some(method) = method else { return Box::pin(answer) };
        let measures = self.layer.measures.clone();
        Box::pin(async move {
            let answer = answer.await;
            if let Ok(answer) = &answer {
                measures.called(&method, code_of(answer), begun.elapsed());
            }
            answer
        })
    }
}

/// Errors stand in the headers; what has begun well ends well, or its trailers say otherwise, which nobody waits for here.
fn code_of(answer: &Response<Body>) -> Code {
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}
